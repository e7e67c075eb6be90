//! Stages, recipes, downloads: the whole job.
