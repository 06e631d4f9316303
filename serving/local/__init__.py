"""What a person beside the robot has: commands over a socket, a page, labelled images."""
