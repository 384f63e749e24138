"""How the bundled demo model is made: its scenes, their language, their drawings, its networks and training."""
