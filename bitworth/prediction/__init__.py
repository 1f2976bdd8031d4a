"""Speed and cost where there is no hardware: a roofline with fitted constants, and a simulated serving loop."""
