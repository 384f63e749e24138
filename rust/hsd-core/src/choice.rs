//! Enums whose variants a user chooses by name: linkages, orders, schedules.

/// Defines such an enum, and derives its list of variants, its names, `Display` and `FromStr` from one list.
///
/// The literal before the enum is what errors call the name.
macro_rules! named_choice {
    (
        $what:literal;
        $(#[$about:meta])*
        pub enum $Choice:ident {
            $($(#[$doc:meta])* $Variant:ident = $name:literal,)+
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $Choice {
            $($(#[$doc])* $Variant,)+
        }

        impl $Choice {
            /// All of them.
            pub const ALL: [Self; [$($name),+].len()] = [$(Self::$Variant),+];

            /// Their names, in the same order.
            pub const NAMES: [&'static str; Self::ALL.len()] = [$($name),+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$Variant => $name,)+
                }
            }
        }

        impl std::fmt::Display for $Choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $Choice {
            type Err = $crate::error::Error;

            fn from_str(name: &str) -> $crate::error::Result<Self> {
                Self::ALL.into_iter().find(|choice| choice.name() == name).ok_or_else(|| Self::Err::UnknownName {
                    what: $what,
                    name: name.to_owned(),
                    choices: &Self::NAMES,
                })
            }
        }
    };
}

pub(crate) use named_choice;
