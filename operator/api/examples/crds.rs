//! Writes the custom resource definitions into `crds/` and the chart below the folder that is named, or compares them with
//! what lies there (`--check`).
//!
//! `cargo xtask crds` calls it; it never deletes a file.
use std::path::Path;
use std::process::ExitCode;

use gregor_operator_api::yaml;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = arguments.iter().any(|argument| argument == "--check");
    let root = arguments.iter().find(|argument| !argument.starts_with("--")).map_or(".", String::as_str);
    let mut good = true;
    for (folder, files) in [("crds", yaml::crd_files()), ("helm/gregor-crds/templates", yaml::chart_files())] {
        let folder = Path::new(root).join(folder);
        let files = match files {
            Ok(files) => files,
            Err(error) => {
                eprintln!("cannot write the definitions as YAML: {error}");
                return ExitCode::FAILURE;
            }
        };
        for (name, text) in files {
            let path = folder.join(name);
            if check {
                if std::fs::read_to_string(&path).ok().as_deref() != Some(&text) {
                    eprintln!("{} is not what operator/api says: run `cargo xtask crds`", path.display());
                    good = false;
                }
            } else if let Err(error) = std::fs::create_dir_all(&folder).and_then(|()| std::fs::write(&path, text)) {
                eprintln!("cannot write {}: {error}", path.display());
                good = false;
            }
        }
    }
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
