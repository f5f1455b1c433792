"""The planner: a grid file becomes points, points become jobs, jobs run on one machine or a cluster, each exactly once."""
