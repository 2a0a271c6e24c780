"""What results reveal: differential privacy with a ledger, PATE, and audits of what a cut leaks."""
