"""Values as JSON text: those that JSON has, and a form for every other."""
