"""Who is alive, what ranks are doing, and how all of them hear of the first failure."""
