"""How processes become the ranks of one job: what launched them, where they meet, who has come."""
