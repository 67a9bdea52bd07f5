"""Pictures of results, one file a kind; :data:`dstee.experiments.figures.command.KINDS` has them by name."""
