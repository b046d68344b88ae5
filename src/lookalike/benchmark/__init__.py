"""The benchmark: candidates, trials, timing, selection, leaderboard and report."""
