"""What trainings have left behind, as rows: read from folders and results files, chosen from, written."""
