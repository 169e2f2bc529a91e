"""Components: one file each, a thin KFP shim over one function of ``atelier.steps``."""
