//! The attribute macros of `fnctl-sdk`; documented there.

use proc_macro::TokenStream;
use quote::quote;
use syn::{FnArg, GenericArgument, ItemFn, PathArguments, ReturnType, Type, parse_macro_input};

/// See `fnctl_sdk::handler`.
#[proc_macro_attribute]
pub fn handler(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    expand_handler(&attribute.to_string(), &function)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

/// See `fnctl_sdk::init`.
#[proc_macro_attribute]
pub fn init(attribute: TokenStream, item: TokenStream) -> TokenStream {
    let function = parse_macro_input!(item as ItemFn);
    expand_init(&attribute.to_string(), &function)
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}

fn plain(attribute: &str, function: &ItemFn) -> syn::Result<()> {
    if !attribute.is_empty() {
        return Err(syn::Error::new_spanned(
            function,
            "this attribute takes no arguments",
        ));
    }
    if let Some(asyncness) = function.sig.asyncness {
        return Err(syn::Error::new_spanned(
            asyncness,
            "an instance serves one request at a time, so this function is not async",
        ));
    }
    Ok(())
}

fn argument_type(argument: &FnArg) -> syn::Result<&Type> {
    match argument {
        FnArg::Typed(typed) => Ok(&typed.ty),
        FnArg::Receiver(receiver) => Err(syn::Error::new_spanned(
            receiver,
            "a handler is a function, not a method",
        )),
    }
}

fn expand_handler(attribute: &str, function: &ItemFn) -> syn::Result<proc_macro2::TokenStream> {
    plain(attribute, function)?;
    let name = &function.sig.ident;
    let inputs: Vec<_> = function.sig.inputs.iter().collect();
    let call = match inputs.as_slice() {
        [input] => {
            let input = argument_type(input)?;
            quote! { ::fnctl_sdk::__private::serve(request, |input: #input| #name(input)) }
        }
        [state, input] => {
            let Type::Reference(state) = argument_type(state)? else {
                return Err(syn::Error::new_spanned(
                    state,
                    "the first of two arguments is a reference to what #[init] returns",
                ));
            };
            let (state, input) = (&state.elem, argument_type(input)?);
            quote! {
                match ::fnctl_sdk::state::<#state>() {
                    Ok(state) => ::fnctl_sdk::__private::serve(request, |input: #input| #name(state, input)),
                    Err(error) => error.into_response(),
                }
            }
        }
        _ => {
            let message = "a handler takes its input, or a reference to the state that #[init] returns and its input";
            return Err(syn::Error::new_spanned(&function.sig, message));
        }
    };
    Ok(quote! {
        #function

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Handler;
            impl ::fnctl_sdk::__private::Handle for Handler {
                fn handle(request: ::fnctl_sdk::Request) -> ::fnctl_sdk::Response {
                    #call
                }
            }
            ::fnctl_sdk::__export_handler!(Handler);
        };

        /// Answers a raw request exactly as the platform would have it answered; for tests on the host.
        #[cfg(not(target_family = "wasm"))]
        #[allow(dead_code, reason = "only tests call it")]
        pub(crate) fn __fnctl_answer(request: ::fnctl_sdk::Request) -> ::fnctl_sdk::Response {
            #call
        }
    })
}

fn expand_init(attribute: &str, function: &ItemFn) -> syn::Result<proc_macro2::TokenStream> {
    plain(attribute, function)?;
    let name = &function.sig.ident;
    if !function.sig.inputs.is_empty() {
        return Err(syn::Error::new_spanned(
            &function.sig.inputs,
            "init takes no arguments",
        ));
    }
    let state = state_type(&function.sig.output).ok_or_else(|| {
        syn::Error::new_spanned(
            &function.sig,
            "init returns Result<State, fnctl_sdk::Error>, with a type of this crate as State",
        )
    })?;
    Ok(quote! {
        #function

        impl ::fnctl_sdk::State for #state {
            fn init() -> ::core::result::Result<Self, ::fnctl_sdk::Error> {
                #name()
            }
        }

        #[cfg(target_family = "wasm")]
        const _: () = {
            struct Init;
            impl ::fnctl_sdk::__private::Init for Init {
                fn init() -> ::core::result::Result<(), ::fnctl_sdk::Error> {
                    ::fnctl_sdk::state::<#state>().map(|_| ())
                }
            }
            ::fnctl_sdk::__export_init!(Init);
        };
    })
}

/// The `T` of a `Result<T, E>` as it is written.
fn state_type(output: &ReturnType) -> Option<&Type> {
    let ReturnType::Type(_, output) = output else {
        return None;
    };
    let Type::Path(path) = output.as_ref() else {
        return None;
    };
    let PathArguments::AngleBracketed(arguments) = &path.path.segments.last()?.arguments else {
        return None;
    };
    match arguments.args.first()? {
        GenericArgument::Type(state) => Some(state),
        _ => None,
    }
}
