"""`agentkv bench pipeline`: requests that come by lot, against budgets of a pipeline's steps."""
