//! Names, metadata and tokenizers carried between containers.
