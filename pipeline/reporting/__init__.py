"""Tables, figures and pages as pure functions of the JSON in eval/; no model library is imported here."""
