//! The macro that declares tests on nodes.

/// Declares tests for combinations of runtime, cgroup driver and placement (launched or external
/// plugin).
///
/// The name of a test contains its combination: `containerd_2_1::systemd::launched::a_sentence`.
///
/// The macro takes the names of functions `fn(&Node, Driver) -> Result<()>` in the calling module.
/// The macro has three forms:
///
/// - `node_tests!(control: { a_sentence, .. })` runs each test without the plugin.
/// - `node_tests!(plugin: { .. })` runs each test twice: with a launched and with an external
///   plugin.
/// - `node_tests!(external: { .. })` runs each test with an external plugin only. This form is for
///   tests whose outcome does not depend on the program that starts the plugin.
///
/// The forms `plugin` and `external` also need `fn config() -> String` in the calling module.
///
/// The group of a test determines its nodes:
///
/// - The first group has tests whose outcome has differed between runtimes or drivers. The nodes of
///   this group are containerd 1.7 with cgroupfs and CRI-O with systemd. These two nodes differ
///   most in kernel, NRI, OCI runtime and driver.
/// - `every: { .. }` has tests for the required behavior of each runtime. There is one node for
///   each runtime, with one cgroup driver.
/// - `once: { .. }` has tests for one node: CRI-O with systemd.
///
/// With the feature `every-combination` all tests run on all nodes.
#[macro_export]
macro_rules! node_tests {
    (
        $kind:ident: { $($name:ident),* $(,)? }
        $(, every: { $($every:ident),* $(,)? })?
        $(, once: { $($once:ident),* $(,)? })?
    ) => {
        mod containerd_1_7 {
            $crate::node_tests!(@driver Containerd17 cgroupfs Cgroupfs $kind
                [$($name)* $($($every)*)?; $($($once)*)?]);
            $crate::node_tests!(@driver Containerd17 systemd Systemd $kind
                [; $($name)* $($($every)*)? $($($once)*)?]);
        }
        mod containerd_2_1 {
            $crate::node_tests!(@driver Containerd21 systemd Systemd $kind
                [$($($every)*)?; $($name)* $($($once)*)?]);
            $crate::node_tests!(@driver Containerd21 cgroupfs Cgroupfs $kind
                [; $($name)* $($($every)*)? $($($once)*)?]);
        }
        mod containerd_2_4 {
            $crate::node_tests!(@driver Containerd24 cgroupfs Cgroupfs $kind
                [$($($every)*)?; $($name)* $($($once)*)?]);
            $crate::node_tests!(@driver Containerd24 systemd Systemd $kind
                [; $($name)* $($($every)*)? $($($once)*)?]);
        }
        mod crio_1_36 {
            $crate::node_tests!(@driver Crio136 systemd Systemd $kind
                [$($name)* $($($every)*)? $($($once)*)?;]);
            $crate::node_tests!(@driver Crio136 cgroupfs Cgroupfs $kind
                [; $($name)* $($($every)*)? $($($once)*)?]);
        }
    };
    (@driver $runtime:ident $module:ident $driver:ident control $names:tt) => {
        mod $module {
            $crate::node_tests!(@cases $runtime $driver ($crate::fleet::Plugin::Absent)
                [super::super] $names);
        }
    };
    (@driver $runtime:ident $module:ident $driver:ident plugin $names:tt) => {
        mod $module {
            mod launched {
                $crate::node_tests!(@cases $runtime $driver ($crate::fleet::Plugin::Installed(
                    $crate::placement::Mode::Launched, super::super::super::config()
                )) [super::super::super] $names);
            }
            $crate::node_tests!(@external $runtime $driver $names);
        }
    };
    (@driver $runtime:ident $module:ident $driver:ident external $names:tt) => {
        mod $module {
            $crate::node_tests!(@external $runtime $driver $names);
        }
    };
    (@external $runtime:ident $driver:ident $names:tt) => {
        mod external {
            $crate::node_tests!(@cases $runtime $driver ($crate::fleet::Plugin::Installed(
                $crate::placement::Mode::External, super::super::super::config()
            )) [super::super::super] $names);
        }
    };
    (@cases $runtime:ident $driver:ident $plugin:tt $up:tt [$($name:ident)*; $($rest:ident)*]) => {
        $( $crate::node_tests!(@case $runtime $driver $plugin $up $name); )*
        $(
            #[cfg(feature = "every-combination")]
            $crate::node_tests!(@case $runtime $driver $plugin $up $rest);
        )*
    };
    (@case $runtime:ident $driver:ident $plugin:tt [$($up:tt)*] $name:ident) => {
        #[test]
        fn $name() {
            let runtime = $crate::runtime::Runtime::$runtime;
            let driver = $crate::runtime::Driver::$driver;
            $crate::fleet::on_node(runtime, driver, &$plugin, $($up)*::$name);
        }
    };
}
