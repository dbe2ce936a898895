"""Many runs from one command: what is asked, where each stands, local processes or Ray, search."""
