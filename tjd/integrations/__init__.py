"""The reward as other trainers want it; one file each."""
