"""What is measured and how: the contenders, their layouts on cards, clocks and floors. Knows of no command."""
