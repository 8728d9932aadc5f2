"""Control maps: the type, its sizes, and how well an image obeys one."""
