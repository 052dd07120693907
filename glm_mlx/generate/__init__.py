"""From a prompt's ids to new ids and their text: sampling, the decode loop, its thread."""
