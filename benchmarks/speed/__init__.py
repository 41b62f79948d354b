"""How fast training is, beside other trainers and the machine's limits, and where its time goes."""
