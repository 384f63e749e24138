"""The little world that the bundled demo model knows: its scenes, its language, its drawings, its networks."""
