//! Builds this crate anew when a migration is added: the macro that embeds them only notices changed files.

fn main() {
    for folder in ["payments", "balance", "processor", "notifier", "fraud"] {
        println!("cargo::rerun-if-changed={folder}");
    }
}
