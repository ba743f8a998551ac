"""Several devices and processes: the mesh, and where arrays lie on it."""
