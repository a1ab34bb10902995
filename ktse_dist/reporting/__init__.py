"""One self-contained page of what a run learnt."""
