"""Released models: fetch them, prove that they work here."""
