"""The engine over several processes: a driver that decides, and a stage for each stretch of layers."""
