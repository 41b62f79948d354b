"""Thousands of commands on bad files, disks and environments: what they answer is judged."""
