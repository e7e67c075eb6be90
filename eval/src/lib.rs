//! Perplexity, KL divergence and reports.
