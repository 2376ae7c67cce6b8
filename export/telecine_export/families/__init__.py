"""What export knows of each family: its networks, patches, releases and precision policies."""
