//! `dog`, the command for people and scripts. All of it is in [`node::dog`].

fn main() -> std::process::ExitCode {
    node::dog::main()
}
