"""Network to CAMs to masks to files."""
