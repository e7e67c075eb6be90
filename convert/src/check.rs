//! Reading back what was written: names, shapes and types, from the headers alone.

use crate::layout::PlannedTensor;
use bitsmith_formats::{Encoding, Error, Result, TensorStore};

/// Holds an opened artifact against its plan. `extra` tensors are there besides the planned ones.
pub(crate) fn tensors(store: &dyn TensorStore, planned: &[PlannedTensor], extra: usize) -> Result<()> {
    let fail = |message: String, tensor: &str| {
        Err(Error::corrupt(format!("read back after writing: {message}"))
            .file(store.path())
            .tensor(tensor)
            .hint("the disk or file system may be failing; write it again elsewhere"))
    };
    for p in planned {
        match store.find(&p.name) {
            None => return fail("is missing".into(), &p.name),
            Some(t) if t.shape != p.shape || t.encoding != Encoding::Codec(p.codec) || t.n_bytes != p.bytes => {
                return fail(format!("is {:?} of {:?} instead of {} of {:?}", t.encoding, t.shape, p.codec, p.shape), &p.name);
            }
            Some(_) => {}
        }
    }
    let found = store.tensors().len();
    if found != planned.len() + extra {
        return fail(format!("{found} tensors instead of {}", planned.len() + extra), "");
    }
    Ok(())
}
