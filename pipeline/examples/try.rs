//! scratch
#![allow(clippy::print_stdout)]
use bitsmith_pipeline::{*, run::*, quantize::*, calibration::*, evaluate::*, artifact::Output};
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let context = Context::from_env();
    let model = Opened::find(&a[1], &context).unwrap();
    let targets: Vec<Target> = a[2].split(',').map(|t| t.parse().unwrap()).collect();
    for method in a[3].split(',') {
    let pure = a.get(8).is_some_and(|p| p == "pure");
    let options = RunOptions {
        quantize: QuantizeOptions { targets: targets.clone(), method: method.parse().unwrap(), calibration: CalibrationOptions { data: Some(a[4].parse().unwrap()), samples: a[7].parse().unwrap(), ..Default::default() },
            plan: bitsmith_quantize::plan::PlanOptions { pure, ..Default::default() }, out: Output::Folder(format!("/tmp/try/{method}").into()), shard_size: None },
        data: a[5].parse().unwrap(), eval: EvalOptions { limit: Some(a[6].parse().unwrap()), ..Default::default() }, gates: vec![], reports: format!("/tmp/try/{method}").into() };
    let p = Pipeline::new(&model, &options, &context).unwrap();
    match p.run() { Ok(o) => println!("{}", o.table), Err(e) => println!("{e} {:?}", e.hint) }
    }
}
