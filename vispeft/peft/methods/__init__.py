"""The fine-tuning methods, one family a file, and the contract that they share."""
