"""The files of results: specifications of runs, records of attempts, and facts about code and machine."""
