"""Where items come from: one file a task, all with one protocol (`task.Task`)."""
