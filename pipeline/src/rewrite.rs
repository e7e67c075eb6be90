//! The model as a whole rewritten before it is quantized: rotations. Tensors are rewritten one by one as they are read.

use crate::context::Context;
use crate::mtp::Mtp;
use crate::opened::Opened;
use crate::quantize::QuantizeOptions;
use bitsmith_formats::{Error, Result};
use bitsmith_runtime::WeightSource;

/// The model as the method's transforms leave it, if one of them rewrites it as a whole. An error says what stands against it.
pub fn rewritten<'a>(
    model: &'a Opened,
    options: &QuantizeOptions,
    context: &Context,
) -> Result<Option<Box<dyn WeightSource + 'a>>> {
    let (method, checkpoint) = (&options.method, &model.checkpoint);
    let Some(rewritten) = method.rewrite(checkpoint, context.seed).map_err(|e| e.file(checkpoint.path()))? else {
        return Ok(None);
    };
    let unsupported = |what: String, hint: &str| Err(Error::unsupported(what).file(checkpoint.path()).hint(hint));
    if checkpoint.tower().is_some() {
        let what = format!("method {method}: images enter the residual stream through a projector, which cannot be rewritten");
        return unsupported(what, "choose a method without `rotate`");
    }
    for &target in &options.targets {
        if Mtp::resolve(options.mtp, target, checkpoint.spec())? != Mtp::Drop {
            let what = format!("method {method}: layers for multi-token prediction share matrices that read other norms");
            return unsupported(what, "--mtp drop leaves them out");
        }
    }
    if options.calibration.stats.is_some() || !options.calibration.imatrix.is_empty() {
        let what = format!("method {method}: statistics gathered from the model as it is do not describe the rewritten one");
        return Err(Error::usage(what).hint("give the text itself: --calib"));
    }
    Ok(Some(rewritten))
}
