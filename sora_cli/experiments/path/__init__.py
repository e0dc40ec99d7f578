"""The regularisation path: warm-started stages, their record, controls, picture, and the choice."""
