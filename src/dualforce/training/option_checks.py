"""Checks of options beyond what metatrain does."""

import difflib
from typing import (
    Annotated,
    Any,
    Callable,
    Iterator,
    List,
    Tuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

from pydantic import GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, core_schema


Hypers = TypeVar("Hypers", bound=type)
Path = Tuple[Union[str, int], ...]


def nearest(name: str, known: list[str]) -> str:
    """A sentence that proposes what may have been meant, or an empty string."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean '{matches[0]}'?" if matches else ""


def _sections(annotation: Any) -> Iterator[Any]:
    """Classes of hypers in the annotation of an option, also inside lists."""
    if isinstance(annotation, type) and issubclass(annotation, dict):
        if getattr(annotation, "__annotations__", None):
            yield annotation
    elif get_origin(annotation) is Annotated:
        yield from _sections(get_args(annotation)[0])
    elif get_origin(annotation) is not dict:
        for argument in get_args(annotation):
            yield from _sections(argument)


def _unknown_options(
    options: Any, hypers: Any, path: Path
) -> Iterator[InitErrorDetails]:
    """An error for each option that does not exist, in this section and below."""
    known = list(hypers.__annotations__)
    extra = getattr(hypers, "__pydantic_config__", {}).get("extra")
    if not isinstance(options, dict) or extra == "allow":
        return
    for key, value in options.items():
        here = (*path, str(key))
        if key not in known:
            message = (
                f"there is no option '{key}'.{nearest(str(key), known)} "
                f"Options here: {', '.join(known)}."
            )
            yield InitErrorDetails(
                type="value_error",
                loc=here,
                input=value,
                ctx={"error": ValueError(message)},
            )
            continue
        for section in _sections(hypers.__annotations__[key]):
            if isinstance(value, list):
                for number, item in enumerate(value):
                    yield from _unknown_options(item, section, (*here, number))
            else:
                yield from _unknown_options(value, section, here)


def _check_of(hypers: Any) -> Callable[[Any], Any]:
    def check(options: Any) -> Any:
        errors: List[InitErrorDetails] = list(_unknown_options(options, hypers, ()))
        if errors:
            # A ValueError would be reported for the section; metatrain expects the
            # place of an option.
            raise ValidationError.from_exception_data(hypers.__name__, errors)
        return options

    return check


def suggest_nearest(hypers: Hypers) -> Hypers:
    """Make validation of a class of hypers propose the nearest option for a wrong one,
    also in the sections inside it.

    metatrain validates ``TypedDict`` classes, which cannot carry methods; the class
    returned has the same annotations and defaults and a schema that checks first.
    """

    def schema(cls: type, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(
            _check_of(hypers), handler.generate_schema(hypers)
        )

    namespace = {k: v for k, v in vars(hypers).items() if not k.startswith("_")}
    namespace |= {
        "__annotations__": hypers.__annotations__,
        "__doc__": hypers.__doc__,
        "__module__": hypers.__module__,
        "__get_pydantic_core_schema__": classmethod(schema),
    }
    return type(hypers.__name__, (dict,), namespace)  # type: ignore[return-value]
