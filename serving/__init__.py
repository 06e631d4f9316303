"""All that runs on the robot, and the contracts that the rest of jetloop shares with it. Imports nothing of ours."""
