"""What both halves share: strict configuration, atomic folders, files of commands, C++ builds."""
