"""One file per benchmark, each with `main(argv)`."""
