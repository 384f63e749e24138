"""One plan on many workers, on Ray: its units run where there is a GPU, and their images go to one folder."""
