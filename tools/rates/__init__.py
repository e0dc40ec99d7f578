"""How well a learning rate is found: trials, stored, and the choices that they would make."""
