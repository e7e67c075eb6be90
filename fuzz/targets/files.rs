//! What is done with any container that opens: its tensors are read, as far as that is cheap.

use bitsmith_formats::{Encoding, TensorStore};

/// Weights of a tensor that are read at most.
const MOST: usize = 1 << 16;

/// Reads the first and the last row of every tensor, and says where each lies.
pub fn read_all(store: &dyn TensorStore) {
    for tensor in store.tensors() {
        let rows = tensor.n_rows();
        let _ = store.file_of(&tensor.name);
        if rows == 0 || tensor.row_len() > MOST {
            continue;
        }
        let bytes = store.row_bytes(&tensor.name, 0..1);
        if let (Ok(bytes), false) = (&bytes, matches!(tensor.encoding, Encoding::Opaque(_))) {
            assert!(bytes.len() <= tensor.row_len() * 8 + 64, "a row of {} weights has {} bytes", tensor.row_len(), bytes.len());
        }
        if !matches!(tensor.encoding, Encoding::Opaque(_)) {
            let _ = store.read_rows(&tensor.name, 0..1);
            let _ = store.read_rows(&tensor.name, rows - 1..rows);
        }
    }
}
