//! The text in the binary, made by `datasets/scripts/make_text.py`.

use super::{Dataset, Purpose};

pub(super) const DATASET: Dataset = Dataset {
    name: "builtin",
    description: "Prose, code, mathematics, dialogue and several languages, in the binary: needs no network",
    license: "MIT OR Apache-2.0",
    domains,
};

macro_rules! domains {
    ($($purpose:ident = $folder:literal),*) => {
        fn domains(purpose: Purpose) -> &'static [(&'static str, &'static str)] {
            match purpose {
                $(Purpose::$purpose => &[
                    ("prose", include_str!(concat!("../../text/", $folder, "/prose.txt"))),
                    ("code", include_str!(concat!("../../text/", $folder, "/code.txt"))),
                    ("math", include_str!(concat!("../../text/", $folder, "/math.txt"))),
                    ("dialogue", include_str!(concat!("../../text/", $folder, "/dialogue.txt"))),
                    ("multilingual", include_str!(concat!("../../text/", $folder, "/multilingual.txt"))),
                ],)*
            }
        }
    };
}

domains!(Calibration = "calibration", Evaluation = "evaluation");
