"""Values as JSON text: JSON values, and a plain form for every other value."""
