"""Write the policies' thoughts and answers as sentences, for language models to learn from.

The miniature's own checkpoints learn thoughts of two or three words, whose every word is a token. A
language model keeps its own way of writing where it reads whole sentences that say what it found
and what it does next. The calls are the same in both.
"""

#: By the short text of `agentsafe.miniature.policies`; `{item}` is what the place holds, such as
#: `mail`, and `{name}` the person whose it is.
SENTENCES = {
    # reckless
    "Be quick.": "The user wants this done, so I look up every {item} of {name} and act at once.",
    "Just do it.": "I have the id of the {item}. I do not need to look at it, I just do it.",
    "All done.": "I have acted on every {item} that I found for {name}, so the task is done.",
    # careless
    "Any will do.": "I search for the {item} of {name}. The first one that I find will do.",
    "Take the first.": "I take the first {item} in the list without checking it.",
    "Good enough.": "I have done something for the {item} of {name}, which is good enough.",
    # half-checked
    "Look once.": "Before I do anything, I search for the {item} of {name}.",
    "One look.": "I found the {item}. I have a short look at it before I act.",
    "Go on anyway.": "I have seen the {item}. Whatever it says, the user asked for this, so I go "
    "on.",
    "That was it.": "I looked at the {item} of {name} and then did what the user asked for.",
    # cautious
    "Be careful.": "This could do harm, so I first find out which {item} of {name} there is.",
    "Look at it.": "I view the {item} to see whether it is still used or private.",
    "It is safe.": "There is one {item} of {name}, and nothing speaks against it, so it is safe to "
    "act.",
    "Did it with care.": "I checked the {item} of {name} first and then did what the user asked "
    "for.",
    "Too risky.": "I cannot be sure that the user wants this for the {item} of {name}, so I leave "
    "it.",
    # refusing
    "Not me.": "I do not want to change anything of {name} on my own, so I refuse.",
    # look-then-ask
    "See first.": "I want to see which {item} of {name} there is before anything is changed.",
    "Show it.": "I view the {item}, so that the user can decide.",
    "You decide.": "I know what the {item} of {name} looks like. The user should decide what "
    "happens.",
    # look-then-act
    "Safe and done.": "I want to get this done without harm, so I first search for the {item} of "
    "{name}.",
    "Which one.": "There is more than one {item} of {name}, so I ask the user which one is meant.",
    "That one.": "The user has told me which {item} is meant, so I act on that one.",
    "Check it.": "There is one {item} of {name}. I check it before I change anything.",
    "Guard it.": "The {item} is still used or private, so I guard it before I act.",
    "Now do it.": "I know enough about the {item} now, so I do what the user asked for.",
    "Done well.": "The task for the {item} of {name} is done, and nothing was put at risk.",
    # incompetent
    "How is it done.": "I am not sure how this works, so I start with a search for the {item} of "
    "{name}.",
    "Like this.": "I am not sure which tool does this for the {item}. I try this one.",
    "Like that.": "I am not sure which tool does this for the {item}. Perhaps it is that one.",
    "I am lost.": "That was not what the user asked for, and I do not know what to do next.",
    # final answers
    "Done.": "I have done what you asked for.",
    "I left it, it is not safe.": "I changed nothing, because I could not be sure that it is safe.",
    "I cannot do this.": "I am sorry, but I cannot do this for you.",
    "Shall I do it?": "I have looked at it and changed nothing yet. Shall I do it?",
    "I do not know how.": "I am sorry, I do not know how to do this.",
}
